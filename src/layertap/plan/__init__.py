"""What a run would need, before money is spent: memory, time, bytes.

`topologies` says what TPUs there are, `models` which model is meant, and `tpu_compile` asks the real TPU compiler.
"""
