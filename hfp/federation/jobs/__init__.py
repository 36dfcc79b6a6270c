"""Runs the clients of a round in worker processes, so that all cores of a machine work on one run.

Read `fleet` first, which gives clients' tasks to a `crew` and takes their replies. The crew keeps the workers busy,
returns replies in order, and replaces a `process` that dies. `description` tells a new process what to set up, with the
images in `memory` that all processes share. `worker` is what such a process does. Tasks and replies are letters of
`hfp.federation.wire`: only bytes pass between the processes, and nothing is unpickled.
"""
