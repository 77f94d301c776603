import numpy as np
def measure(r):
    return {"seconds": len(r.samples)/r.rate, "rate": r.rate, "loudness": float(10*np.log10(np.mean(r.samples**2)+1e-10))}
def remarks(examples): return []
