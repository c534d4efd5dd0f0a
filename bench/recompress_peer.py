# SPDX-License-Identifier: Apache-2.0
"""The peer of recompress.cpp: torch.linalg.svd of the dense sum of three rank-16 deltas, one thread.

    python bench/recompress_peer.py
"""
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(1)
factors = [(w, torch.randn(2048, 16), torch.randn(16, 2048)) for w in (1.0, 0.5, -0.3)]
seconds = []
for _ in range(3):
    start = time.perf_counter()
    dense = sum(w * (b @ a) for w, b, a in factors)
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    b, a = u[:, :16] * s[:16], vh[:16]
    seconds.append(time.perf_counter() - start)
error = (s[16:].square().sum() / s.square().sum()).sqrt().item()
print(f"torch {torch.__version__}: {1000 * min(seconds):.1f} ms (best of 3), relative error {error:.6f}")
