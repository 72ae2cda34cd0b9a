"""Rollout engines: one interface to whatever draws responses from the policy."""

from workbench.rollout.engine import Engine, Request, Response

__all__ = ["Engine", "Request", "Response"]
