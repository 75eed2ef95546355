"""Estimate what a run needs before you spend money: memory, time, bytes."""
