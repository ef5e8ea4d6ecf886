"""Small problems on Gram matrices, solved exactly: what the methods with a solver share."""
