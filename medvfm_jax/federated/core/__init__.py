"""What every part of a federation is made of: records, local training, maps over clients, the parts of a delta."""
