"""Linear algebra at the size of the data: a packed Cholesky factor, Lanczos, conjugate gradients."""
