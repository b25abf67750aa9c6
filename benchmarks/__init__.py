"""What a stage takes, beside plain code of the same steps, measured in the same run."""
