"""Models, versions, aliases and lineage over a store and a ledger."""
