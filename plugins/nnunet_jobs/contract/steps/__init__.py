"""What each step takes and gives: parameters, results, and the rules written in them."""
