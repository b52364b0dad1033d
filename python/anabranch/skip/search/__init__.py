"""Searches for what routers could choose: `mcts_paths` (Dr.LLM's labels) and `oracle_search` (Duo-LLM's bound)."""

from anabranch.skip.search.oracle import OracleResult, Pattern, oracle_search
from anabranch.skip.search.paths import FoundPath, Path, mcts_paths, path_labels

__all__ = ["FoundPath", "OracleResult", "Path", "Pattern", "mcts_paths", "oracle_search", "path_labels"]
