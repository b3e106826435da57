"""What a model is asked and answers: filters, questions and reasons."""
