"""A credit service: sells, spends, refunds and reports credits over gRPC, on PostgreSQL.

The contract is protos/credit_service/v1/credit_service.proto, and docs/design.md shows the path of
a request. Workers use `credit_service.client`, which needs none of the server's packages.
"""

import os

# gRPC reads this when it is imported. Otherwise it starts threads in every fork of a process that
# has a client, also between fork and exec, where they crash some of the programs that an
# application on uvloop starts. It allows no calls after a fork either way.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
