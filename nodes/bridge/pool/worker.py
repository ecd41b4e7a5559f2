"""What runs on a worker. Ray sends this class by value, and `unet/` next to it: nothing else of this package is there."""

import os
import socket


class Worker:
    """Calls of a `Replica`, whose errors are those of Python's own classes: ours are not known where the calls come from."""

    def __init__(self, kind: str):
        from unet.replica import Replica

        self.replica = Replica(kind)

    def hello(self) -> tuple[str, int, str]:
        """(the machine's name, the process, what it computes on)."""
        import torch

        device = self.replica.device
        return socket.gethostname(), os.getpid(), torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

    def alive(self) -> bool:
        """Answers while a call runs."""
        return True

    def begin(self, spec, keep):
        from unet.weights.errors import UNetFileError

        try:
            return self.replica.begin(spec, keep)
        except UNetFileError as error:
            raise ValueError(str(error)) from None

    def put(self, weights):
        self.replica.put(weights)

    def finish(self):
        self.replica.finish()

    def embed(self, key, images):
        self.replica.embed(key, images)

    def call(self, *args):
        return self.replica.call(*args)
