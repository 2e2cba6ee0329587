"""int8 and fp8: ranges measured while images are generated, Q/DQ nodes, acceptance."""
