"""Policies on models of transformers."""

from anabranch.skip.runtime.apply import apply, remove
from anabranch.skip.runtime.report import LayerReport, Report, report

__all__ = ["LayerReport", "Report", "apply", "remove", "report"]
