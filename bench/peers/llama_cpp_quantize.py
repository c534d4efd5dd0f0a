#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""llama_cpp_quantize.py MODEL.gguf OUT.gguf: Q4_K_M, by llama.cpp itself: the mixture of formats that most GGUF files
come in. Tensors whose rows are no multiple of 256 become Q5_0 or Q8_0."""
import sys

import llama_cpp as l

parameters = l.llama_model_quantize_default_params()
parameters.ftype = l.LLAMA_FTYPE_MOSTLY_Q4_K_M
source, out = (name.encode() for name in sys.argv[1:])
if l.llama_model_quantize(source, out, parameters) != 0:
    sys.exit(f"llama.cpp could not quantise {sys.argv[1]}")
