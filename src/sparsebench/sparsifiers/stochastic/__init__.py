"""Engine 2, for methods that learn a distribution over each weight and are thresholded."""
