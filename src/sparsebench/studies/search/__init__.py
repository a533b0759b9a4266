"""Search: samplers that propose the configurations of a method from the results of earlier ones."""
