"""A credit service: sells, spends, refunds and reports credits over gRPC, on PostgreSQL.

The contract is protos/credit_service/v1/credit_service.proto, and docs/design.md shows the path of
a request. Workers use `credit_service.client`, which needs none of the server's packages.
"""
