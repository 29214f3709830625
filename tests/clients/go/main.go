// Uses Google's Go client against the emulator at PUBSUB_EMULATOR_HOST, and prints a JSON report.
// The first argument is the name of the topic and of the subscription. The second, `grpc` or
// `rest`, is the protocol of all calls except publishing and receiving, which are always gRPC.
// `tests/sdk/test_clients.py` runs the program and checks the report.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"slices"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2"
	apiv1 "cloud.google.com/go/pubsub/v2/apiv1"
	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/api/option"
)

const (
	filter  = `attributes.to = "me"`
	key     = "a-key"
	timeout = 30 * time.Second
)

// The published numbers: the even ones pass the filter.
var batches = [][]int{{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, {10, 11}}

// Report is what the client received and listed. The program of every language prints the same one.
type Report struct {
	Filter   string   `json:"filter"`
	Received []string `json:"received"`
	// The ordering keys of the messages received, each once.
	Keys []string `json:"keys"`
	// The topic and the subscription, as the project lists them before and after their deletion.
	Listed          []string `json:"listed"`
	ListedAfterward []string `json:"listed_afterward"`
	// The topic's subscriptions, before and after the detachment.
	Attached          []string `json:"attached"`
	AttachedAfterward []string `json:"attached_afterward"`
	Detached          bool     `json:"detached"`
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: clients NAME grpc|rest")
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	report, err := run(ctx, os.Getenv("GOOGLE_CLOUD_PROJECT"), os.Args[1], os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, project, name, protocol string) (*Report, error) {
	client, err := pubsub.NewClient(ctx, project)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer client.Close()
	admins, err := newAdmins(ctx, client, protocol)
	if err != nil {
		return nil, fmt.Errorf("connect by %s: %w", protocol, err)
	}
	topic := fmt.Sprintf("projects/%s/topics/%s", project, name)
	subscription := fmt.Sprintf("projects/%s/subscriptions/%s", project, name)
	report := &Report{}

	if _, err := admins.topics.CreateTopic(ctx, &pb.Topic{Name: topic}); err != nil {
		return nil, fmt.Errorf("create the topic: %w", err)
	}
	created, err := admins.subscriptions.CreateSubscription(ctx, &pb.Subscription{
		Name:                  subscription,
		Topic:                 topic,
		Filter:                filter,
		EnableMessageOrdering: true,
	})
	if err != nil {
		return nil, fmt.Errorf("create the subscription: %w", err)
	}
	report.Filter = created.Filter

	// Messages of an ordering key are delivered only after the earlier ones were acknowledged. So
	// the second batch arrives alone only if the emulator received all acknowledgements of the first.
	for _, numbers := range batches {
		if err := publish(ctx, client, topic, numbers); err != nil {
			return nil, fmt.Errorf("publish: %w", err)
		}
		if err := receive(ctx, client, subscription, len(numbers)/2, report); err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
	}

	if report.Listed, err = listed(ctx, admins, project, topic, subscription); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	if report.Attached, err = attached(ctx, admins, topic); err != nil {
		return nil, fmt.Errorf("list the topic's subscriptions: %w", err)
	}
	detach := &pb.DetachSubscriptionRequest{Subscription: subscription}
	if _, err := admins.topics.DetachSubscription(ctx, detach); err != nil {
		return nil, fmt.Errorf("detach: %w", err)
	}
	get := &pb.GetSubscriptionRequest{Subscription: subscription}
	found, err := admins.subscriptions.GetSubscription(ctx, get)
	if err != nil {
		return nil, fmt.Errorf("get the subscription: %w", err)
	}
	report.Detached = found.Detached
	if report.AttachedAfterward, err = attached(ctx, admins, topic); err != nil {
		return nil, fmt.Errorf("list the topic's subscriptions: %w", err)
	}

	deleted := &pb.DeleteSubscriptionRequest{Subscription: subscription}
	if err := admins.subscriptions.DeleteSubscription(ctx, deleted); err != nil {
		return nil, fmt.Errorf("delete the subscription: %w", err)
	}
	if err := admins.topics.DeleteTopic(ctx, &pb.DeleteTopicRequest{Topic: topic}); err != nil {
		return nil, fmt.Errorf("delete the topic: %w", err)
	}
	if report.ListedAfterward, err = listed(ctx, admins, project, topic, subscription); err != nil {
		return nil, fmt.Errorf("list after the deletion: %w", err)
	}
	return report, nil
}

// The clients that create, list and delete.
type admins struct {
	topics        *apiv1.TopicAdminClient
	subscriptions *apiv1.SubscriptionAdminClient
}

func newAdmins(ctx context.Context, client *pubsub.Client, protocol string) (*admins, error) {
	if protocol == "grpc" {
		return &admins{client.TopicAdminClient, client.SubscriptionAdminClient}, nil
	}
	// The REST clients do not read PUBSUB_EMULATOR_HOST themselves.
	options := []option.ClientOption{
		option.WithEndpoint("http://" + os.Getenv("PUBSUB_EMULATOR_HOST")),
		option.WithoutAuthentication(),
	}
	topics, err := apiv1.NewTopicAdminRESTClient(ctx, options...)
	if err != nil {
		return nil, err
	}
	subscriptions, err := apiv1.NewSubscriptionAdminRESTClient(ctx, options...)
	return &admins{topics, subscriptions}, err
}

// Publishes numbers with one ordering key, and waits until the emulator accepted them.
func publish(ctx context.Context, client *pubsub.Client, topic string, numbers []int) error {
	publisher := client.Publisher(topic)
	publisher.EnableMessageOrdering = true
	defer publisher.Stop()
	var results []*pubsub.PublishResult
	for _, number := range numbers {
		results = append(results, publisher.Publish(ctx, &pubsub.Message{
			Data:        fmt.Append(nil, number),
			Attributes:  map[string]string{"to": []string{"me", "you"}[number%2]},
			OrderingKey: key,
		}))
	}
	for _, result := range results {
		if _, err := result.Get(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Receives by a streaming pull until `count` messages are acknowledged.
func receive(
	ctx context.Context, client *pubsub.Client, subscription string, count int, report *Report,
) error {
	stream, stop := context.WithCancel(ctx)
	defer stop()
	var lock sync.Mutex
	handle := func(_ context.Context, message *pubsub.Message) {
		lock.Lock()
		defer lock.Unlock()
		report.Received = append(report.Received, string(message.Data))
		if !slices.Contains(report.Keys, message.OrderingKey) {
			report.Keys = append(report.Keys, message.OrderingKey)
		}
		message.Ack()
		if count--; count == 0 {
			stop()
		}
	}
	if err := client.Subscriber(subscription).Receive(stream, handle); err != nil {
		return err
	}
	return ctx.Err()
}

// Those of the names that the project lists.
func listed(
	ctx context.Context, admins *admins, project string, names ...string,
) ([]string, error) {
	parent := "projects/" + project
	found := []string{}
	add := func(name string) {
		if slices.Contains(names, name) {
			found = append(found, name)
		}
	}
	topics := &pb.ListTopicsRequest{Project: parent}
	for topic, err := range admins.topics.ListTopics(ctx, topics).All() {
		if err != nil {
			return nil, err
		}
		add(topic.Name)
	}
	subscriptions := &pb.ListSubscriptionsRequest{Project: parent}
	for subscription, err := range admins.subscriptions.ListSubscriptions(ctx, subscriptions).All() {
		if err != nil {
			return nil, err
		}
		add(subscription.Name)
	}
	return found, nil
}

// The names of the topic's subscriptions.
func attached(ctx context.Context, admins *admins, topic string) ([]string, error) {
	names := []string{}
	request := &pb.ListTopicSubscriptionsRequest{Topic: topic}
	for name, err := range admins.topics.ListTopicSubscriptions(ctx, request).All() {
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}
