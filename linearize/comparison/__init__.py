"""`linearize compare`: the same run in several variants and seeds, measured alike, in one table.

A *cell* is one variant. ``options`` has the `[compare]` table, ``cells`` makes recipes of it and checks them all,
``running`` runs what is left of them in processes of their own (``worker``), ``decoding`` times teacher and students
side by side, ``findings`` reads it all back, ``noise`` says which differences are more than chance, and ``table``,
``charts`` and ``page`` show it. Only ``worker`` and ``decoding`` import torch.
"""
