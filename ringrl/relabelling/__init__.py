"""Physics states -> rewards of any task of the domain."""
