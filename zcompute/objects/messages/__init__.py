"""What is said between the services: requests, replies and events, by whom they concern."""
