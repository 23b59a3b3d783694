"""What an operator has done to rows of old age or old form, by the owners of their partitions, in bounded steps."""
