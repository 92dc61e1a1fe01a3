"""Monthly close, loss check, statement, orders on the chain, audit."""
