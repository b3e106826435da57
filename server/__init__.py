"""The federation's side: who takes part, how updates become a model, what is served."""
