"""What several tests share.

families: small networks of every family. small: networks of two levels. controlnexts, formulas: published formulas, written out.
oracle, published: the host's networks and the authors' control that ours are compared with. controls: fixtures of ControlNet tests.
live: bytes of the tensors alive. host_in_process: a ComfyUI in this process. client, prompts: a server as a script meets it.
editor: the front end in Chromium. stand_ins: files that take no space.
"""
