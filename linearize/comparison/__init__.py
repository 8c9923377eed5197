"""`linearize compare`: the same run in several variants and seeds, measured alike, in one table.

A *cell* is one variant. ``cells`` makes recipes of the `[compare]` table and checks them all, with what compared mixers
keep of each other's options from ``shared_options``; ``equal_time`` chooses their steps where they are to train equally
long; ``running`` runs what is left of them in processes of their own (``worker``), ``decoding`` times teacher and
students side by side, ``findings`` reads it all back, ``noise`` says which differences are more than chance, and
``table``, ``charts`` and ``page`` show it. Only ``worker`` and ``decoding`` import torch.
"""
