"""What one pass over data gives: gradients of gates, squares of weight gradients, Kronecker factors."""
