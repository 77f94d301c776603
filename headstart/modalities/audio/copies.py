import numpy as np
DIM = 0
def sketch(x): return np.zeros(0, np.uint8)
def describe(s): return np.zeros((len(s),0), np.float16)
