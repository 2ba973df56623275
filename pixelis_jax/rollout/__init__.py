"""Episodes: engine, agent, replay."""
