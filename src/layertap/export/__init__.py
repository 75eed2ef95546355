"""Activations for trainers: adapters that pass batches to a trainer, and `layertap export`, which
writes the formats that trainers read.
"""

from layertap.export.adapters import as_iterable_dataset, for_dictionary_learning, for_saelens, for_sparsify

__all__ = ["as_iterable_dataset", "for_dictionary_learning", "for_saelens", "for_sparsify"]
