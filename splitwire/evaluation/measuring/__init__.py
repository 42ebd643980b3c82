"""One contender after another over the data: features, stages, figures, kept on disk."""
