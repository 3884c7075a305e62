"""From item vectors to semantic ids: quantizers, resolved collisions, the prefix tree, and how good the ids are."""
