"""Our engine behind the APIs of other libraries."""
