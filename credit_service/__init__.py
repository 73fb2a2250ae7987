"""A credit service: prices work, spends, refunds and reports credits over gRPC, on PostgreSQL.

The contract stands in protos/credit_service/v1/credit_service.proto. A request goes from the
`servicer` through the `ledger` into a writer lane (`lanes`), is decided by the `rules` and written
by the `store`. Workers use `credit_service.client`, which needs none of the server's packages.
"""
