"""A credit service: sells, spends, refunds and reports credits over gRPC, on PostgreSQL.

The contract is protos/credit_service/v1/credit_service.proto, and docs/design.md shows the path of
a request. Workers use `credit_service.client`, which needs none of the server's packages.
"""

import gc
import os

# gRPC reads this when it is imported. Otherwise it starts threads in every fork of a process that
# has a client, also between fork and exec, where they crash some of the programs that an
# application on uvloop starts. Either way, gRPC allows no calls after a fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


class _Collector:
    """The garbage collector is off while a process forks.

    In the child it could collect a gRPC channel, which waits for ever for a thread that the child
    does not have. On uvloop a child runs Python between fork and exec too, and its parent waits for
    it.
    """

    paused = False

    @classmethod
    def pause(cls) -> None:
        if gc.isenabled():
            cls.paused = True
            gc.disable()

    @classmethod
    def go_on(cls) -> None:
        if cls.paused:
            cls.paused = False
            gc.enable()


os.register_at_fork(
    before=_Collector.pause, after_in_parent=_Collector.go_on, after_in_child=_Collector.go_on
)
