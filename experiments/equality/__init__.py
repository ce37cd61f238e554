"""Dense = gated experts, exactly, on real text; and by gradient descent."""
