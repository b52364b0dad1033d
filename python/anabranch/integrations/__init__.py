"""Adapters to other libraries; each is imported by name, so none is a dependency."""
