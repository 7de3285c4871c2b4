// Command etcd is the etcd server as its own project builds it. It has a module here because upstream's uses replace
// directives, which `go install` refuses.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
