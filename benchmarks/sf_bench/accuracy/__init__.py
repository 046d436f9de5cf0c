"""`sf-bench accuracy`: accuracy after training on the rows of quantized front ends, against training on fp32 rows."""
