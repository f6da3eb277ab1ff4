"""Rollouts: the source of reinforcement learning, from prompts to minibatches of episodes."""
