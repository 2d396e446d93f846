"""What is asked of a fit: criteria, importance sampling, the amortisation gap."""
