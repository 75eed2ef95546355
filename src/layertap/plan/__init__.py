"""What a run would need, before money is spent: memory, time, bytes."""
