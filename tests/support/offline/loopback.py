"""`loopback.py COMMAND…` in a new network namespace: brings its loopback device up, checks that there is no route, runs COMMAND."""

import errno
import fcntl
import os
import socket
import struct
import sys

SET_FLAGS, UP = 0x8914, 1  # SIOCSIFFLAGS and IFF_UP of Linux

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    fcntl.ioctl(probe, SET_FLAGS, struct.pack("16sh22x", b"lo", UP))
    if probe.connect_ex(("192.0.2.1", 9)) != errno.ENETUNREACH:  # an address that no machine has
        sys.exit("there is a route out of this network namespace")
os.execvp(sys.argv[1], sys.argv[1:])
