// Reads one subject of a stream with the Go client's ordered consumer, the fastest reader that NATS itself offers, and
// prints the seconds until the last of `count` messages. With `decode` it also decodes each and adds up the amounts.
//
// Usage: reader URL STREAM SUBJECT COUNT [decode]
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type event struct {
	Type string `json:"type"`
	Data struct {
		Amount int    `json:"amount"`
		Note   string `json:"note"`
	} `json:"data"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 4 {
		return fmt.Errorf("usage: reader URL STREAM SUBJECT COUNT [decode]")
	}
	url, stream, subject := arguments[0], arguments[1], arguments[2]
	count, err := strconv.Atoi(arguments[3])
	if err != nil {
		return err
	}
	connection, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	js, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	began := time.Now()
	balance, err := read(js, stream, subject, count, len(arguments) > 4)
	if err != nil {
		return err
	}
	fmt.Println(time.Since(began).Seconds(), balance)
	return nil
}

func read(js jetstream.JetStream, stream, subject string, count int, decode bool) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	consumer, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	if err != nil {
		return 0, err
	}
	balance, seen := 0, 0
	done := make(chan error, 1)
	consuming, err := consumer.Consume(func(message jetstream.Msg) {
		if decode {
			var events []event
			if err := json.Unmarshal(message.Data(), &events); err != nil {
				done <- err
				return
			}
			for _, found := range events {
				balance += found.Data.Amount
			}
		}
		if seen++; seen == count {
			done <- nil
		}
	})
	if err != nil {
		return 0, err
	}
	defer consuming.Stop()
	select {
	case err = <-done:
		return balance, err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
