"""What a UNet of the family is made of: levels, the layout of its blocks, and the table of the family's members."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BlockLayout:
    """One input or output block: where it stands and how wide it is."""

    level: int  # of its residual block; where it has none, of what it makes
    in_channels: int  # of what enters, in an output block together with its skip; 0 = the network's own input
    channels: int  # of what leaves
    residual: int | None  # index of its residual block on its path, as in `depth_in` and `depth_out`; None where it has none
    resampling: str | None = None  # "down": it only halves height and width. "up": it doubles them after its other layers


def level_size(level: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a level, where level 0 has `height` and `width`."""
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


@dataclass(frozen=True)
class Levels:
    """The widths and residual blocks of a network. A level is one resolution; level 0 is the finest.

    Each further level has half the height and width, rounded up.
    """

    model_channels: int
    channel_mult: tuple[int, ...]  # width of each level, in model_channels
    num_res_blocks: tuple[int, ...]  # residual blocks of each level on the down path; one more on the up path

    @property
    def level_channels(self) -> list[int]:
        """The width of each level."""
        return [mult * self.model_channels for mult in self.channel_mult]

    @property
    def num_skips(self) -> int:
        """Input blocks, each of which leaves one skip: the first convolution, residual blocks, downsamplings."""
        return len(self.input_layout())

    def input_layout(self) -> list[BlockLayout]:
        """The input blocks in the order in which they run: the first convolution, then level by level."""
        blocks = [BlockLayout(0, 0, self.model_channels, None)]
        residual = 0
        for level, channels in enumerate(self.level_channels):
            if level > 0:
                last = blocks[-1].channels
                blocks.append(BlockLayout(level, last, last, None, "down"))
            for _ in range(self.num_res_blocks[level]):
                blocks.append(BlockLayout(level, blocks[-1].channels, channels, residual))
                residual += 1
        return blocks

    def output_layout(self) -> list[BlockLayout]:
        """The output blocks in the order in which they run: from the coarsest level, one residual block in each."""
        skips = [block.channels for block in self.input_layout()]
        blocks: list[BlockLayout] = []
        last = skips[-1]
        for level, channels in reversed(list(enumerate(self.level_channels))):
            for remaining in reversed(range(self.num_res_blocks[level] + 1)):
                resampling = "up" if level > 0 and remaining == 0 else None
                blocks.append(BlockLayout(level, last + skips.pop(), channels, len(blocks), resampling))
                last = channels
        return blocks


@dataclass(frozen=True)
class UNetConfig(Levels):
    """The shape of one network.

    Everything but the head width can be read from a file's tensors (see `weights/detect.py`).
    """

    in_channels: int
    out_channels: int
    depth_in: tuple[int, ...]  # transformer depth of each residual block on the down path, 0 = no transformer
    depth_out: tuple[int, ...]  # transformer depth of each residual block on the up path, in the order of output_blocks
    depth_middle: int | None  # of the middle block; 0 = one residual block alone, None = no middle block
    context_dim: int | None  # width of the context (text or image embedding); None where nothing attends to one
    linear_projection: bool  # proj_in and proj_out of the transformers: linear layers, or 1x1 convolutions (SD1)
    self_attention: tuple[bool, ...]  # of each level: False where attn1 attends to the context too
    temporal: bool  # layers over time (SVD)
    adm_channels: int | None = None  # width of the vector condition y
    num_classes: int | None = None  # y is an index into a table of this many embeddings instead (x4 upscaler)
    num_heads: int | None = None  # the same number of heads everywhere (SD1) …
    head_channels: int | None = 64  # … or heads of this width everywhere

    @property
    def emb_channels(self) -> int:
        return self.model_channels * 4

    @property
    def takes_y(self) -> bool:
        return self.adm_channels is not None or self.num_classes is not None

    def heads(self, channels: int) -> tuple[int, int]:
        """(number of heads, width of a head) of an attention over `channels`."""
        if self.num_heads is not None:
            return self.num_heads, channels // self.num_heads
        assert self.head_channels is not None  # a config gives one of the two
        return channels // self.head_channels, self.head_channels


@dataclass(frozen=True)
class Family:
    """One member of the family: how it is recognized, and what cannot be read from shapes."""

    name: str  # short, stable
    title: str  # for people
    host: str  # the name of the host's class for it
    match: dict = field(default_factory=dict)  # fields of UNetConfig and the values that they must have
    num_heads: int | None = None  # where heads are counted; else they are 64 wide
    marker: str | None = None  # a tensor next to the UNet that this member brings


def _sd1(name, title, host="SD15", marker=None, **match):
    match = {"temporal": False, "linear_projection": False, "adm_channels": None, **match}
    return Family(name, title, host, match, num_heads=8, marker=marker)


def _sd2(name, title, host="SD20", num_heads=None, **match):
    match = {"temporal": False, "linear_projection": True, "adm_channels": None, "num_classes": None, **match}
    return Family(name, title, host, match, num_heads=num_heads)


def _sdxl(name, title, host="SDXL", **match):
    return Family(name, title, host, {"temporal": False, "linear_projection": True, "adm_channels": 2816, **match})


def _svd(name, title, host, **match):
    return Family(name, title, host, {"temporal": True, "linear_projection": True, "in_channels": 8, **match})


# The first row that matches is the answer, so special cases stand above the general one. Widths play no part: a
# miniature with 64 channels is of the same family as the real thing.
FAMILIES = (
    _svd("svd", "Stable Video Diffusion", "SVD_img2vid", adm_channels=768),
    _svd("sv3d_u", "SV3D (orbit)", "SV3D_u", adm_channels=256),
    _svd("sv3d_p", "SV3D (camera path)", "SV3D_p", adm_channels=1280),
    _sd1("sd1_tiny", "SD 1 tiny / SDXS-512", in_channels=4, num_res_blocks=(1, 1, 1)),
    _sd1("sd1", "Stable Diffusion 1", in_channels=4),
    _sd1("sd1_inpaint", "Stable Diffusion 1 inpainting", in_channels=9),
    _sd1("zero123", "Stable Zero123", "Stable_Zero123", in_channels=8, marker="cc_projection.weight"),
    _sd1("sd1_ip2p", "InstructPix2Pix (SD 1)", "SD15_instructpix2pix", in_channels=8),
    _sd2("sd2_tiny", "SD 2 tiny / SDXS-512 0.9", in_channels=4, num_res_blocks=(1, 1, 1)),
    _sd2("sd2", "Stable Diffusion 2", in_channels=4),
    _sd2("sd2_inpaint", "Stable Diffusion 2 inpainting", in_channels=9),
    _sd2("unclip_l", "Stable unCLIP 2.1 (ViT-L)", "SD21UnclipL", in_channels=4, adm_channels=1536),
    _sd2("unclip_h", "Stable unCLIP 2.1 (ViT-H)", "SD21UnclipH", in_channels=4, adm_channels=2048),
    _sd2("lotus", "Lotus depth", "LotusD", in_channels=4, adm_channels=4),
    _sd2("x4_upscaler", "Stable Diffusion x4 upscaler", "SD_X4Upscaler", in_channels=7, num_classes=1000, num_heads=8),
    _sdxl("sdxl_refiner", "SDXL refiner", "SDXLRefiner", in_channels=4, adm_channels=2560),
    _sdxl("ssd_1b", "SSD-1B", "SSD1B", in_channels=4, depth_in=(0, 0, 2, 2, 4, 4)),
    _sdxl("vega", "Segmind Vega", "Segmind_Vega", in_channels=4, depth_in=(0, 0, 1, 1, 2, 2)),
    _sdxl("koala_700m", "KOALA 700M", "KOALA_700M", in_channels=4, depth_in=(0, 2, 5)),
    _sdxl("koala_1b", "KOALA 1B", "KOALA_1B", in_channels=4, depth_in=(0, 2, 6)),
    _sdxl("sdxl", "Stable Diffusion XL", in_channels=4),
    _sdxl("sdxl_ip2p", "InstructPix2Pix (SDXL)", "SDXL_instructpix2pix", in_channels=8),
    _sdxl("sdxl_inpaint", "SDXL inpainting", in_channels=9),
)
