module aether.flowmade.one/cluster/pause

go 1.26.0
