"""What a trained run is good for: scores, answers, a merged model."""
