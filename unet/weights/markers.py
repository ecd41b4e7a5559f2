"""Tensors next to a UNet that say how it was trained; some have no numbers in them, their names say it."""

MARKERS = (  # v-prediction, EDM, and what Zero123 has before its UNet
    "v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min",
    "cc_projection.weight", "cc_projection.bias",
)
