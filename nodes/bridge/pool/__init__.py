"""Calls of a MODEL's network on several machines, by Ray: sampling stays here.

`cluster.py`: starting Ray or joining it. `workers.py`: its actors, each of which runs `worker.py` around a `Replica`.
`attempts.py`: one call, sent again where a worker is lost or late. `shared_network.py`: what a worker needs of a MODEL or a
ControlNet; `sent_controls.py`: of a call's controls.
`pool_run.py`: the calls of one sampling run. `pooled_model.py`: a MODEL whose calls go there.
`stays_here.py`: what keeps a run or a call on this machine.
"""
