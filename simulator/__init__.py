"""Virtual panels and storage nodes: real agents over real MQTT, fed by measured traces."""
