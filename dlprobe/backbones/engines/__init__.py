"""What computes a network: its choice, torch, OpenVINO. The rest of a backbone is the same under each."""
